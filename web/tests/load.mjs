import { readFile } from "node:fs/promises";

/** Imports a module of the page that works without a browser. Node would take its `.js` for CommonJS. */
export async function load(name) {
  return import(await address(name));
}

/** Makes an address of a module's text, and of the modules that it imports. */
async function address(name) {
  let source = await readFile(new URL(`../scripts/${name}.js`, import.meta.url), "utf8");
  for (const [from, imported] of source.matchAll(/"\.\/(\w+)\.js"/g)) source = source.replace(from, JSON.stringify(await address(imported)));
  return `data:text/javascript,${encodeURIComponent(source)}`;
}
