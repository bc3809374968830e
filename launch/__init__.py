"""From one description to the manifest of a site: SLURM, GKE, TPU VMs, SkyPilot."""
