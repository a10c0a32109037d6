// The line at the bottom: where the pointer is, and the raw value there; and the scale bar.

import type { Held, Slide } from "./api";
import { byId } from "./dom";
import { exact, length, round125, short, signed, whole } from "./format";

const BAR_PX = 140;

export function drawPlace(slide: Slide | null, at: { x: number; y: number } | null, byPointer: boolean): void {
  const inside = at && slide?.l0_size && at.x >= 0 && at.y >= 0 && at.x < slide.l0_size[0] && at.y < slide.l0_size[1];
  byId("where").textContent = !at ? "" : inside ? (byPointer ? "pointer" : "centre") : "beside the slide";
  byId("at-px").textContent = at ? `${whole(Math.floor(at.x))}, ${whole(Math.floor(at.y))} px` : "";
  byId("at-um").textContent = at && slide?.mpp ? `${whole(at.x * slide.mpp)}, ${whole(at.y * slide.mpp)} µm` : "";
}

export function drawValue(held: Held | null | "unknown"): void {
  const box = byId("at-value");
  if (held === "unknown") box.textContent = "";
  else if (held === null) box.textContent = "no patch";
  else {
    const kept = held.patches.some((patch) => patch.kept) ? " · kept" : "";
    const mean = held.patches.length > 1 ? ` · mean of ${held.patches.length}` : "";
    const said =
      held.map !== "attention"
        ? `${held.map} ${signed(held.value)} logit`
        : `attention ${exact(held.value)} · ${short(held.times_even)}× even`;
    box.textContent = `${said} · P${held.percentile.toFixed(1)}${mean}${kept}`;
  }
}

/** l0PerPx: level-0 pixels per pixel of the screen. */
export function drawScale(slide: Slide | null, l0PerPx: number | null): void {
  const box = byId("scale-bar");
  const zoom = byId("at-zoom");
  box.hidden = !(slide?.mpp && l0PerPx);
  zoom.textContent = "";
  if (l0PerPx) {
    const ratio = l0PerPx >= 1 ? `1 : ${Number(l0PerPx.toPrecision(3))}` : `${Number((1 / l0PerPx).toPrecision(3))} : 1`;
    zoom.textContent = slide?.mpp ? `${ratio} · ${Number((l0PerPx * slide.mpp).toPrecision(3))} µm/px` : ratio;
  }
  if (!(slide?.mpp && l0PerPx)) return;
  const umPerPx = slide.mpp * l0PerPx;
  const um = round125(umPerPx * BAR_PX);
  byId("scale-label").textContent = length(um);
  byId("scale-line").style.width = `${um / umPerPx}px`;
  box.setAttribute("aria-label", `Scale bar: ${length(um)}`);
}
