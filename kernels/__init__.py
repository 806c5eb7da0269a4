"""Device code: the kernels that run on a GPU, installed as ``scfast.kernels``."""
