"""What maintainers run: fuzzing, soak, kills, mutations, benchmarks."""
