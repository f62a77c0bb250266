"""Getting accuracy back after units were removed: mask tuning, least-squares refit, distillation."""
