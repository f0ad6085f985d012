"""Messages between the processes of one engine, and the sockets that carry them."""
