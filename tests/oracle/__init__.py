"""References that the library is compared with, written from the paper's equations and not from the library."""
