/** Eq. 4 of the paper, as in jrm_client/probability.py: the probability that one edit is better than another. */

const STEP = 0.25; // the trapezoidal rule converges exponentially here: with this step the error is far below 1e-9

const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** The normal distribution function: a series of positive terms near zero, a continued fraction in the tails. */
export function normalCdf(x) {
  const z = Math.abs(x) / Math.SQRT2;
  let upper; // P(beyond |x|), one side
  if (z < 3) {
    let term = z;
    let sum = z;
    for (let n = 1; term > 1e-17 * sum; n += 1) sum += term *= (2 * z * z) / (2 * n + 1);
    upper = 0.5 - Math.exp(-z * z) * sum / Math.sqrt(Math.PI);
  } else {
    let fraction = z;
    for (let n = 60; n > 0; n -= 1) fraction = z + n / 2 / fraction;
    upper = Math.exp(-z * z) / fraction / Math.sqrt(Math.PI) / 2;
  }
  return x > 0 ? 1 - upper : upper;
}

/** E[sigmoid(D)] for D ~ N(mean, std²). */
export function expectedSigmoid(mean, std) {
  if (Number.isNaN(mean) || Number.isNaN(std)) return NaN;
  if (mean > 0) return 1 - expectedSigmoid(-mean, std); // so that the two sides of a pair add up to 1
  if (mean === 0) return 0.5;
  if (std === 0) return sigmoid(mean);
  // A large std would squeeze the sigmoid between two nodes: there the integral is taken over the logistic density.
  const [reach, density, value] =
    std < 1
      ? [10, (x) => Math.exp(-0.5 * x * x), (x) => sigmoid(mean + std * x)]
      : [40, (x) => sigmoid(x) * sigmoid(-x), (x) => normalCdf((mean - x) / std)];
  let total = 0;
  let weight = 0;
  for (let x = -reach; x <= reach; x += STEP) {
    total += density(x) * value(x);
    weight += density(x);
  }
  return total / weight;
}

/**
 * P(a is better than b). Without a std on either side it is sigmoid(a - b).
 *
 * @param {{mean: number, std: number | null}} a
 * @param {{mean: number, std: number | null}} b
 */
export function winProbability(a, b) {
  const known = a.std !== null && b.std !== null;
  return expectedSigmoid(a.mean - b.mean, known ? Math.hypot(a.std, b.std) : 0);
}
