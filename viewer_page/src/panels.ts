// On narrow screens the two panels are sheets over the slide, opened by the buttons at the bottom.

import { byId } from "./dom";

const PANELS = ["slides", "inspector"] as const;

function open(which: (typeof PANELS)[number] | null): void {
  for (const name of PANELS) {
    byId(name).classList.toggle("open", name === which);
    byId(`tab-${name}`).setAttribute("aria-expanded", String(name === which));
  }
}

export function closePanels(): void {
  open(null);
}

export function bindPanels(): void {
  for (const name of PANELS) {
    byId(`tab-${name}`).addEventListener("click", () => {
      open(byId(name).classList.contains("open") ? null : name);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") open(null);
  });
  byId("stage").addEventListener("pointerdown", () => open(null));
}
