"""Networks of pre-training around the encoder: masked autoencoder, classifier."""
