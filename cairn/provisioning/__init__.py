"""`cairn init`: plans a federation and writes the files of its nodes."""
