"""Physical slicing: a plan becomes smaller dense layers, exactly."""
