"""Controls of the dock widget."""
