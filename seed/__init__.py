"""The data a run starts from. Knows no tensor and no model."""
