"""The version of Jug whose names and ways are answered to."""

__version__ = "2.7.0"
CITATION = "Coelho, L.P., (2017). Jug: Software for Parallel Reproducible Computation in Python. JORS 5(1), p.30."
