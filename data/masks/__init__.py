"""Where the patient is."""
