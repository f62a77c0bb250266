"""The papers' own data and models, from a hub: `python -m benchmarks.tasks.run --hub --task sst2`."""
