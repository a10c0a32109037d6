// What is on the screen, and how it is written into the address, so that a link restores it.

export const SCALES = ["even", "rank", "absolute"] as const;
export type Scale = (typeof SCALES)[number];
export type Colormap = "blue_yellow" | "blue_red";

export interface View {
  slide: string | null;
  /** Centre in level-0 pixels, and level-0 pixels per pixel of the screen; null: the whole slide. */
  place: { x: number; y: number; z: number } | null;
  heat: boolean;
  opacity: number;
  colormap: Colormap;
  scale: Scale;
  /** The ends of the colours: times the even share, percentiles, or raw values; null: the scale's own. */
  low: number | null;
  high: number | null;
  /** Which map: "" (the default picture), "attention" (mean over queries), "task:NAME" or "query:NUMBER" (its
   * attention), "class:TASK/CLASS" (contribution, both written as in addresses), "gradient:TASK/CLASS". */
  of: string;
  head: number | null;
  outlines: boolean;
  objects: boolean;
  compare: boolean;
}

export const START: View = {
  slide: null,
  place: null,
  heat: true,
  opacity: 0.5,
  colormap: "blue_yellow",
  scale: "even",
  low: null,
  high: null,
  of: "",
  head: null,
  outlines: true,
  objects: true,
  compare: false,
};

function finite(text: string | null): number | null {
  if (text === null || text.trim() === "") return null;
  const value = Number(text);
  return Number.isFinite(value) ? value : null;
}

/** Addresses of earlier versions call "rank" "percentile". */
function scaleNamed(text: string | null): Scale {
  if (text === "percentile") return "rank";
  return SCALES.find((scale) => scale === text) ?? START.scale;
}

/** The view that an address means; what is missing or broken is as at the start. */
export function fromHash(hash: string): View {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const [x, y, z] = ["x", "y", "z"].map((name) => finite(said.get(name)));
  const opacity = finite(said.get("opacity"));
  const head = finite(said.get("head"));
  const of = said.get("of") ?? "";
  return {
    slide: said.get("slide"),
    place: x != null && y != null && z != null && z > 0 ? { x, y, z } : null,
    heat: said.get("heat") !== "off",
    opacity: opacity === null ? START.opacity : Math.min(1, Math.max(0, opacity)),
    colormap: said.get("colours") === "blue_red" ? "blue_red" : "blue_yellow",
    scale: scaleNamed(said.get("scale")),
    low: finite(said.get("low")),
    high: finite(said.get("high")),
    of: /^(attention|task:.+|query:\d+|(class|gradient):[^/]+\/[^/]+)$/.test(of) ? of : "",
    head: head !== null && Number.isInteger(head) && head >= 0 ? head : null,
    outlines: said.get("outlines") !== "off",
    objects: said.get("objects") !== "off",
    compare: said.get("compare") === "on",
  };
}

export function toHash(view: View): string {
  const said = new URLSearchParams();
  if (view.slide !== null) said.set("slide", view.slide);
  if (view.place) {
    said.set("x", view.place.x.toFixed(0));
    said.set("y", view.place.y.toFixed(0));
    said.set("z", String(Number(view.place.z.toPrecision(5))));
  }
  if (!view.heat) said.set("heat", "off");
  if (view.opacity !== START.opacity) said.set("opacity", view.opacity.toFixed(2));
  if (view.colormap !== START.colormap) said.set("colours", view.colormap);
  if (view.scale !== START.scale) said.set("scale", view.scale);
  if (view.low !== null) said.set("low", String(view.low));
  if (view.high !== null) said.set("high", String(view.high));
  if (view.of) said.set("of", view.of);
  if (view.head !== null) said.set("head", String(view.head));
  if (!view.outlines) said.set("outlines", "off");
  if (!view.objects) said.set("objects", "off");
  if (view.compare) said.set("compare", "on");
  return "#" + said.toString();
}

/** The choice of a class's contributions, or gradients, in `View.of`. */
export function ofClass(kind: "class" | "gradient", task: string, name: string): string {
  return `${kind}:${encodeURIComponent(task)}/${encodeURIComponent(name)}`;
}

/** Which map and which colours, as the server takes them. */
export function mapQuery(view: View): string {
  const asked = new URLSearchParams({ colormap: view.colormap, scale: view.scale });
  if (view.low !== null) asked.set("low", String(view.low));
  if (view.high !== null) asked.set("high", String(view.high));
  const [kind, choice] = [view.of.split(":", 1)[0], view.of.slice(view.of.indexOf(":") + 1)];
  if (kind === "class" || kind === "gradient") {
    const [task, name] = choice.split("/").map(decoded) as [string, string];
    return new URLSearchParams({ map: kind === "class" ? "contribution" : kind, task, class: name }).toString();
  }
  if (kind) asked.set("map", "attention");
  if (kind === "task" || kind === "query") asked.set(kind, choice);
  if (view.head !== null) asked.set("head", String(view.head));
  return asked.toString();
}

/** A part of an address; one that is broken stands for itself. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

type Listener = (view: Readonly<View>, changed: ReadonlySet<keyof View>) => void;

/** The one view of the page; whoever shows a part of it listens. */
export class Store {
  private listeners: Listener[] = [];

  constructor(public view: Readonly<View>) {}

  listen(listener: Listener): void {
    this.listeners.push(listener);
  }

  update(part: Partial<View>): void {
    const before = this.view;
    const after = { ...before, ...part };
    const changed = new Set(
      (Object.keys(part) as (keyof View)[]).filter((key) => {
        return JSON.stringify(before[key]) !== JSON.stringify(after[key]);
      }),
    );
    if (!changed.size) return;
    this.view = after;
    for (const listener of this.listeners) listener(after, changed);
  }
}
