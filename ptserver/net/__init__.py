"""What joins the machines: addresses, sockets, TLS, frames, and the loop that waits for them."""
