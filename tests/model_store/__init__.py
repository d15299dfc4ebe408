"""Tests of models on disk and of `coe doctor`; a package, so that its conftest does not hide the one above it."""
