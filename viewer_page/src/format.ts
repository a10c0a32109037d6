// Numbers as they are read.

/** Three digits: 0.25, 8.10e-4; as the legends of overlays have it. */
export function short(value: number): string {
  if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1000)) {
    return String(Number(value.toPrecision(3)));
  }
  return value.toExponential(2);
}

/** The same with its sign: +0.25, −8.10e-4. */
export function signed(value: number): string {
  return (value > 0 ? "+" : "") + short(value).replace(/^-/, "\u2212");
}

/** Four digits for a readout that stands still while its last digit changes. */
export function exact(value: number): string {
  if (value === 0) return "0";
  return Math.abs(value) >= 0.001 && Math.abs(value) < 1000 ? value.toPrecision(4) : value.toExponential(3);
}

/** Thousands apart by a thin space: 12 345. */
export function whole(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** A length: 840 nm, 120 µm, 3.2 mm. */
export function length(um: number): string {
  if (um < 1) return `${Number((um * 1000).toPrecision(3))} nm`;
  return um < 1000 ? `${Number(um.toPrecision(3))} µm` : `${Number((um / 1000).toPrecision(3))} mm`;
}

/** The longest 1, 2 or 5 times a power of ten that is no longer than `most`. */
export function round125(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...[0.1, 1].flatMap((f) => [1, 2, 5].map((s) => s * f * power)).filter((l) => l <= most));
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;
}

/** The power of ten (a multiple of three) that is written once beside several numbers, 0 where they are short. */
export function commonPower(values: number[]): number {
  const sizes = values.map(Math.abs).filter((size) => size > 0);
  if (!sizes.length || (Math.min(...sizes) >= 0.01 && Math.max(...sizes) < 1000)) return 0;
  return 3 * Math.floor(Math.log10(Math.max(...sizes)) / 3);
}

/** Colours from left to right, for a stylesheet. */
export function gradient(colours: string[]): string {
  return `linear-gradient(to right, ${colours.join(", ")})`;
}
