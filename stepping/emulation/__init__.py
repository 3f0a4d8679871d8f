"""A Linux process without a kernel: the address space, threads and signals of an emulated program."""
