"""Jobs of a Slurm cluster, submitted through submitit."""
