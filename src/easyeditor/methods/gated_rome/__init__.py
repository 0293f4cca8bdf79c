"""GatedROME: ROME's values in a codebook, each behind a gate on its subject's key."""
