"""From trained weights to AP, and to all that intervals and reach are made of."""
