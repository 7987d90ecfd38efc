"""Who a node is: names, keys, certificates and the federation's authority."""
