"""Tests of `safear_edit/gate/`."""
