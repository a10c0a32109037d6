// What the server answers; see wsi_ips/viewer/app.py.

export interface Task {
  name: string;
  classes: string[];
  activation: "softmax" | "sigmoid" | "linear";
}

export interface Run {
  name: string;
  path: string;
  tasks: Task[];
}

export interface Listed {
  slide_id: string;
  status: "ok" | "failed" | "waiting" | "running";
  predicted: Record<string, string>;
  probabilities: Record<string, Record<string, number | null>>;
  n_patches: number | null;
  error: string;
  labels: Record<string, string>;
  split: string | null;
  /** Whether the manifest's label says something else than the prediction. */
  wrong: boolean;
  has_attention: boolean;
}

/** A page of the list of slides: `first` is the place of its first slide among the `found` ones, from 0. */
export interface Slides {
  slides: Listed[];
  first: number;
  found: number;
  total: number;
  /** Whether some slide of the run is not done yet. */
  unfinished: boolean;
  notes: string[];
}

export interface Maps {
  heads: number;
  queries: number;
  task_queries: Record<string, number>;
  /** Task and class of each output whose contributions are known; none: the model's head does not tell. */
  contributions: [string, string][];
  /** The same of gradient times input; none: predict was not asked for it. */
  gradients: [string, string][];
}

export interface Slide extends Listed {
  v: string;
  tile_px: number;
  slide_problem: string | null;
  heat_problem: string | null;
  l0_size: [number, number] | null;
  mpp: number | null;
  maps: Maps | null;
  /** What was scanned: left, top, width, height in level-0 pixels; null: all of it. */
  bounds: [number, number, number, number] | null;
  has_outlines: boolean;
  has_objects: boolean;
  l0_patch?: number;
  patch_px?: number;
  patch_mpp?: number;
  n_kept?: number;
  bad_tiles?: number;
  /** The case that the slide was read as a part of: one bag of these slides and patches (0: not known). */
  case?: { case_id: string; slides: string[]; share: number | null; patches: number } | null;
  vendor?: string;
  reader?: string;
}

export type MapKind = "attention" | "contribution" | "gradient";

export interface Legend {
  map: MapKind;
  shown: string;
  /** In words, how far the values go. */
  spread: string;
  /** Contributions and gradients: to which class. */
  class: string | null;
  scale: "even" | "rank" | "absolute" | "signed";
  low: number;
  high: number;
  min: number | null;
  max: number | null;
  n_patches: number;
  /** The attention of a patch if all had the same; of a slide of a case, all patches of the case. */
  even_share: number;
  flat: boolean;
  colours: string[];
  ticks: { at: number; value: number; percentile: number; times_even: number; beyond: "" | "<=" | ">=" }[];
}

export interface Patch {
  id: number;
  l0_x: number;
  l0_y: number;
  value: number;
  colour: string;
  kept: boolean;
  rank?: number;
}

export interface Held {
  map: Legend["map"];
  value: number;
  times_even: number;
  percentile: number;
  at: number;
  patches: Patch[];
}

export interface Patches {
  l0_patch: number;
  map: Legend["map"];
  class: string | null;
  patches: Patch[];
}

/** What was found in a part of the slide: each by itself, or so many in each square. */
export interface Found {
  n_objects: number;
  in_view: number;
  outlined: boolean;
  classes: { name: string; colour: string; in_view: number }[];
  objects: { class: number; score: number; ring: number[] }[] | null;
  cells: { l0_side: number; counts: [number, number, number][] } | null;
}

/** An answer that is not 2xx, with the server's one line. */
export class Refused extends Error {}

export async function ask<T>(path: string, signal?: AbortSignal): Promise<T> {
  const answer = await fetch(path, { signal: signal ?? null });
  const body = (await answer.json().catch(() => ({ error: answer.statusText }))) as T & { error?: string };
  if (!answer.ok) throw new Refused(body.error ?? `the server answered ${answer.status}`);
  return body;
}

/** Where a slide's JSON lies, or below it with `what`. */
export function about(run: number, slideId: string, what = ""): string {
  return `/api/runs/${run}/slides/${encodeURIComponent(slideId)}${what && "/" + what}`;
}

/** Where a slide's pictures lie. */
export function pictures(run: number, slideId: string): string {
  return `/runs/${run}/slides/${encodeURIComponent(slideId)}`;
}
