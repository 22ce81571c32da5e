"""Search: pictures become vectors, vectors are kept in a store, and a gallery finds what looks alike."""
