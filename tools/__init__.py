"""What maintainers run: fuzzing, soak, kills, mutations, benchmarks."""

import data  # noqa: F401  # first: it says what to do where packages are missing
