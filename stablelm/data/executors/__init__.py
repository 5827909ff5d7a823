"""What runs the tasks of a stage: processes of this machine, a cluster, an array of jobs."""
