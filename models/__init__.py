"""Networks, losses and the models made of them."""
