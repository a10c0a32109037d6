// Puts the page together: one view, and the parts that show it.

import "./style.css";

import { byId } from "./dom";
import { bindKeys, toggleHelp } from "./keys";
import { App } from "./app";
import { fromHash, Store } from "./state";
import { followTheme, switchTheme } from "./theme";
import { ask, type Run } from "./api";
import { bindPanels } from "./panels";

followTheme();
byId("theme").addEventListener("click", switchTheme);
bindPanels();

async function start(): Promise<void> {
  const { runs } = await ask<{ runs: Run[] }>("/api/view");
  const store = new Store(fromHash(location.hash));
  const app = new App(store, runs);
  bindKeys([...app.keys(), { keys: ["t"], shown: "t", does: "Light or dark", run: switchTheme },
    { keys: ["?"], shown: "?", does: "This panel", run: toggleHelp }]);
  await app.start();
}

start().catch((error: unknown) => {
  byId("panes").textContent = `The viewer could not start: ${error instanceof Error ? error.message : error}`;
});
