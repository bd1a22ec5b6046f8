"""Built-in plugins: quantizers, samplers, supervisions, calibrators, costs, datasets, devices, tasks and recipes."""
