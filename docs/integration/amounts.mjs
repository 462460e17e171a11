// Amounts as people type them. The same grammar as utrn_client.amounts, and the same vectors: tests/vectors/amounts.json.

// The most that one code carries: 8191 pounds.
export const PENCE_MAX = 819_100;

// Whole pence: digits of ASCII, no sign, point, exponent, space or separator; never by way of a number with decimals, of
// which a part would be sold.
export function parsePence(text) {
  const pence = typeof text === 'string' && /^[1-9][0-9]{0,14}$/.test(text) ? Number(text) : 0;
  if (pence >= 1 && pence <= PENCE_MAX) return pence;
  const what = text === undefined ? 'an amount is needed after the PAN' : `${JSON.stringify(text)} is no amount`;
  throw new RangeError(`${what}: whole pence from 1 to ${PENCE_MAX} are needed, as 1099 for 10.99 pounds`);
}
