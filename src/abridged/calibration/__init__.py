"""What data tells about a network's layers, in one streaming pass, and the algebra that repairs a layer with it."""
