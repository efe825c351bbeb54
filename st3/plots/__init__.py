"""Every figure that st3 draws; matplotlib is imported in this folder and nowhere else."""
