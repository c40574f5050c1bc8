"""Tests of `safear_edit/report/`."""
