"""Folders of coe's own for each test, as the tests of the model store have them."""

from model_store.conftest import coe as coe
