"""Files and folders that last: durable writes, a node's database, files that others wrote."""
