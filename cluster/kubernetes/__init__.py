"""Jobs of a Kubernetes cluster, as JobSets."""
