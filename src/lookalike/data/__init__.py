"""Data sets in the layouts people have them in, decoded once into packs and fed to networks in augmented batches."""
