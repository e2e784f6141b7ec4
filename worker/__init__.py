"""Everything that leaves the queue: pipeline, proof, forwarding, retrieval, indexing and the sweep."""
