"""Model repositories for the Hub, and the way from official weights to them."""
