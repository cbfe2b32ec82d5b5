"""The numbers by which src/cmunext/inference/native/vectors.h computes GELU, and src/cmunext/training/kernels/gelu.h GELU and its derivative,
and how far each way is from the function.

    python tools/gelu_approximations.py

GELU(x) = max(x, 0) - u q(u) with u = |x| and q(u) = 1 - Phi(u), the normal distribution's tail; from some `top` on, u is taken as `top`. In
float32 q is a polynomial, interpolated between 0 and `top` at Chebyshev's points, in powers of u - top / 2. In bfloat16 it is a line around each
multiple of `STEP`, right at Chebyshev's points but for a constant, and right in the mean. Errors are those of float32 arithmetic with fused
multiply-adds, where the even and the odd terms of the polynomial are summed apart.

The derivative is e(u) = q(u) - u phi(u) for negative x, and 1 - e(u) else. In training both q and e are polynomials in float32, and nothing from
`TOP` on; for maps in bfloat16 a parabola around each multiple of `NARROWER_STEP`, right at Chebyshev's points, and nothing from the last on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev
from scipy.special import ndtr

Function = Callable[[np.ndarray], np.ndarray]

TOP, DEGREE = 5.5, 15  # of the polynomial
LINES, STEP = 32, 1 / 8
IN_TRAINING = 19  # degree of q and of e there
NARROWER_STEP = 2 / 11  # of the parabolas, the last of which is nothing


def tail(u: np.ndarray) -> np.ndarray:
    return ndtr(-u)


def of_slope(u: np.ndarray) -> np.ndarray:
    return ndtr(-u) - u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)


def terms(function: Function = tail, top: float = TOP, degree: int = DEGREE) -> np.ndarray:
    """Coefficients of the polynomial, the constant first."""
    middle = top / 2
    fitted: Any = chebyshev.chebinterpolate(lambda t: function(middle * (t + 1)), degree)  # type: ignore[type-var]
    return (chebyshev.cheb2poly(fitted) / middle ** np.arange(degree + 1)).astype(np.float32)


def lines() -> np.ndarray:
    """Constants and slopes, 2 x LINES."""
    found = []
    for start, end in pieces(STEP):
        line = Chebyshev.interpolate(tail, 1, [start, end]).convert(kind=Polynomial)
        u = np.linspace(start, end, 201)
        found.append(line.coef + np.array([np.mean(tail(u) - line(u)), 0]))
    return np.array(found, np.float32).T


def parabolas(function: Function) -> np.ndarray:
    """Constants, terms of u and of its square, 3 x LINES."""
    fitted = [Chebyshev.interpolate(function, 2, piece).convert(kind=Polynomial).coef for piece in pieces(NARROWER_STEP)[:-1]]
    return np.array([*fitted, np.zeros(3)], np.float32).T


def pieces(step: float) -> list[list[float]]:
    """From where to where each line or parabola is the nearest."""
    return [[max(0, nearest - 0.5) * step, min(LINES - 1, nearest + 0.5) * step] for nearest in range(LINES)]


def horner(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The polynomial at `x`, each step rounded once to float32, as a fused multiply-add does."""
    y = np.full(x.shape, coefficients[-1], np.float32)
    for term in coefficients[-2::-1]:
        y = (y * x.astype(np.float64) + term).astype(np.float32)
    return y


def gelu(x: np.ndarray, top: float, tail: Function) -> np.ndarray:
    """What is computed of GELU, for float32 `x`."""
    u = np.minimum(abs(x), np.float32(top))
    return (np.maximum(x, 0) - u.astype(np.float64) * tail(u)).astype(np.float32)


def slope(x: np.ndarray, top: float, e: Function) -> np.ndarray:
    """What the kernels compute of the derivative, for float32 `x`."""
    of_u = e(np.minimum(abs(x), np.float32(top)))
    return np.where(x > 0, 1 - of_u, of_u)


def nothing_beyond(coefficients: np.ndarray) -> Function:
    """The polynomial, and 0 from `TOP` on."""
    return lambda u: np.where(u < TOP, polynomial(coefficients, TOP, u), 0)


def polynomial(coefficients: np.ndarray, top: float, u: np.ndarray) -> np.ndarray:
    t = (u - np.float32(top / 2)).astype(np.float64)
    squared = (t * t).astype(np.float32)
    return (horner(coefficients[1::2], squared) * t + horner(coefficients[::2], squared)).astype(np.float32)


def by_lines(u: np.ndarray) -> np.ndarray:
    constant, slope = lines()[:, np.rint(u / STEP).astype(int)]
    return (slope * u.astype(np.float64) + constant).astype(np.float32)


def by_parabolas(function: Function) -> Function:
    coefficients = parabolas(function)

    def at(u: np.ndarray) -> np.ndarray:
        constant, linear, square = coefficients[:, np.rint(u / NARROWER_STEP).astype(int)]
        inner = (square * u.astype(np.float64) + linear).astype(np.float32)
        return (inner * u.astype(np.float64) + constant).astype(np.float32)

    return at


def report(name: str, wrong: Function, numbers: list[np.ndarray]) -> None:
    """Print the error of an approximation, `wrong` of float32 numbers, and what it is computed by."""
    every = np.linspace(-8, 8, 400_001, dtype=np.float32)
    normal = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    print(
        f"{name}: largest error {abs(wrong(every)).max():.1e}, root mean square for normal x {np.sqrt(np.mean(wrong(normal) ** 2)):.1e}"
    )
    for row in numbers:
        print("  " + ", ".join(f"{number:.9g}f" if number else "0" for number in row))


def exact(x: np.ndarray) -> np.ndarray:
    return x * ndtr(x.astype(np.float64))


def exact_slope(x: np.ndarray) -> np.ndarray:
    u = abs(x.astype(np.float64))
    return np.where(x > 0, 1 - of_slope(u), of_slope(u))


def error(computed: Callable[[np.ndarray, float, Function], np.ndarray], top: float, way: Function, right: Function) -> Function:
    return lambda x: computed(x, top, way) - right(x)


def main() -> None:
    print("src/cmunext/inference/native/vectors.h")
    report("Float32", error(gelu, TOP, lambda u: polynomial(terms(), TOP, u), exact), [terms()])
    report("BFloat16", error(gelu, (LINES - 1) * STEP, by_lines, exact), list(lines()))
    print("src/cmunext/training/kernels/gelu.h")
    for name, function, computed, right in (("TAIL", tail, gelu, exact), ("SLOPE", of_slope, slope, exact_slope)):
        longer, top = terms(function, TOP, IN_TRAINING), (LINES - 1) * NARROWER_STEP
        report(name, error(computed, TOP, nothing_beyond(longer), right), [longer])
        report(f"{name}_NEAR", error(computed, top, by_parabolas(function), right), list(parabolas(function)))


if __name__ == "__main__":
    main()
