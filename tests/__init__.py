"""The test suite, see CONTRIBUTING.md."""
