"""The polynomials by which src/cmunext/inference/native/vectors.h computes GELU, and how far each is from the function.

    python tools/gelu_polynomials.py

GELU(x) = max(x, 0) - u q(u) with u = |x| and q(u) = 1 - Phi(u), the normal distribution's tail. q is interpolated between 0 and `top` at
Chebyshev's points, in powers of u - top / 2; from `top` on, u is taken as `top`. Errors are those of float32 arithmetic with fused
multiply-adds, where of many terms the even and the odd ones are summed apart.
"""

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import ndtr

FORMATS = {"Float32": (5.5, 15), "BFloat16": (4.0, 6)}  # top, degree


def terms(top: float, degree: int) -> np.ndarray:
    """Coefficients of the polynomial, the constant first."""
    middle = top / 2
    fitted = chebyshev.chebinterpolate(lambda t: ndtr(-middle * (t + 1)), degree)
    return (chebyshev.cheb2poly(fitted) / middle ** np.arange(degree + 1)).astype(np.float32)


def horner(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The polynomial at `x`, each step rounded once to float32, as a fused multiply-add does."""
    y = np.full(x.shape, coefficients[-1], np.float32)
    for term in coefficients[-2::-1]:
        y = (y * x.astype(np.float64) + term).astype(np.float32)
    return y


def gelu(x: np.ndarray, top: float, coefficients: np.ndarray) -> np.ndarray:
    """What the engine computes, for float32 `x`."""
    u = np.minimum(abs(x), np.float32(top))
    t = (u - np.float32(top / 2)).astype(np.float64)
    if len(coefficients) > 8:
        squared = (t * t).astype(np.float32)
        y = (horner(coefficients[1::2], squared) * t + horner(coefficients[::2], squared)).astype(np.float32)
    else:
        y = horner(coefficients, t)
    return (np.maximum(x, 0) - u.astype(np.float64) * y).astype(np.float32)


def main() -> None:
    every = np.linspace(-8, 8, 400_001, dtype=np.float32)
    normal = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    for name, (top, degree) in FORMATS.items():
        coefficients = terms(top, degree)

        def error(x: np.ndarray, top: float = top, coefficients: np.ndarray = coefficients) -> np.ndarray:
            return gelu(x, top, coefficients) - x * ndtr(x.astype(np.float64))

        print(
            f"{name}: largest error {abs(error(every)).max():.1e}, root mean square for normal x {np.sqrt(np.mean(error(normal) ** 2)):.1e}"
        )
        print("  " + ", ".join(f"{term:.9g}f" for term in coefficients))


if __name__ == "__main__":
    main()
