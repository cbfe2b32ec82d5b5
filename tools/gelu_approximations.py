"""The numbers by which src/cmunext/inference/native/vectors.h computes GELU, and how far each way is from the function.

    python tools/gelu_approximations.py

GELU(x) = max(x, 0) - u q(u) with u = |x| and q(u) = 1 - Phi(u), the normal distribution's tail; from some `top` on, u is taken as `top`. In
float32 q is a polynomial, interpolated between 0 and `top` at Chebyshev's points, in powers of u - top / 2. In bfloat16 it is a line around each
multiple of `STEP`, right at Chebyshev's points but for a constant, and right in the mean. Errors are those of float32 arithmetic with fused
multiply-adds, where the even and the odd terms of the polynomial are summed apart.
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from scipy.special import ndtr

TOP, DEGREE = 5.5, 15  # of the polynomial
LINES, STEP = 32, 1 / 8


def terms() -> np.ndarray:
    """Coefficients of the polynomial, the constant first."""
    middle = TOP / 2
    fitted = chebyshev.chebinterpolate(lambda t: ndtr(-middle * (t + 1)), DEGREE)
    return (chebyshev.cheb2poly(fitted) / middle ** np.arange(DEGREE + 1)).astype(np.float32)


def lines() -> np.ndarray:
    """Constants and slopes, 2 x LINES."""
    found = []
    for nearest in range(LINES):
        start, end = max(0, nearest - 0.5) * STEP, min(LINES - 1, nearest + 0.5) * STEP
        line = Chebyshev.interpolate(lambda u: ndtr(-u), 1, [start, end]).convert(kind=Polynomial)
        u = np.linspace(start, end, 201)
        found.append(line.coef + np.array([np.mean(ndtr(-u) - line(u)), 0]))
    return np.array(found, np.float32).T


def horner(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The polynomial at `x`, each step rounded once to float32, as a fused multiply-add does."""
    y = np.full(x.shape, coefficients[-1], np.float32)
    for term in coefficients[-2::-1]:
        y = (y * x.astype(np.float64) + term).astype(np.float32)
    return y


def gelu(x: np.ndarray, top: float, tail: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What the engine computes, for float32 `x`."""
    u = np.minimum(abs(x), np.float32(top))
    return (np.maximum(x, 0) - u.astype(np.float64) * tail(u)).astype(np.float32)


def by_polynomial(u: np.ndarray) -> np.ndarray:
    t = (u - np.float32(TOP / 2)).astype(np.float64)
    squared = (t * t).astype(np.float32)
    coefficients = terms()
    return (horner(coefficients[1::2], squared) * t + horner(coefficients[::2], squared)).astype(np.float32)


def by_lines(u: np.ndarray) -> np.ndarray:
    constant, slope = lines()[:, np.rint(u / STEP).astype(int)]
    return (slope * u.astype(np.float64) + constant).astype(np.float32)


def main() -> None:
    every = np.linspace(-8, 8, 400_001, dtype=np.float32)
    normal = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    for name, top, tail, numbers in (
        ("Float32", TOP, by_polynomial, [terms()]),
        ("BFloat16", (LINES - 1) * STEP, by_lines, lines()),
    ):

        def error(x: np.ndarray, top: float = top, tail: Callable[[np.ndarray], np.ndarray] = tail) -> np.ndarray:
            return gelu(x, top, tail) - x * ndtr(x.astype(np.float64))

        print(
            f"{name}: largest error {abs(error(every)).max():.1e}, root mean square for normal x {np.sqrt(np.mean(error(normal) ** 2)):.1e}"
        )
        for row in numbers:
            print("  " + ", ".join(f"{number:.9g}f" for number in row))


if __name__ == "__main__":
    main()
