// Draws the dashboards without Grafana, for docs/images: it runs the panels' queries against a Prometheus, draws the series with
// uPlot, which Grafana uses, too, in a page laid out as the dashboards say, and lets Chromium photograph it.
//
//   npm ci --prefix deploy/grafana/pictures
//   node deploy/grafana/pictures/pictures.mjs http://localhost:9090 docs/images [minutes]

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const [prometheus, target, minutes = '15'] = process.argv.slice(2);
if (!prometheus || !target) {
  console.error('usage: pictures.mjs PROMETHEUS_URL TARGET_FOLDER [MINUTES]');
  process.exit(2);
}

const here = dirname(fileURLToPath(import.meta.url));
const folder = join(here, '..');
const library = join(here, 'node_modules', 'uplot', 'dist');
const COLUMN_PX = 54;
const ROW_PX = 30;
const POINTS = 240;
const COLORS = ['#73bf69', '#f2cc0c', '#5794f2', '#ff780a', '#b877d9', '#e02f44', '#8ab8ff', '#96d98d', '#ffb357', '#ca95e5'];

const end = Math.floor(Date.now() / 1000);
const start = end - 60 * Number(minutes);
const step = Math.max(1, Math.round((end - start) / POINTS));

async function ask(path, parameters) {
  const answer = await fetch(`${prometheus}/api/v1/${path}`, { method: 'POST', body: new URLSearchParams(parameters) });
  const body = await answer.json();
  if (body.status !== 'success') throw new Error(`${parameters.query}: ${body.error}`);
  return body.data.result;
}

function expand(expression) {
  return expression.replaceAll('$__rate_interval', '1m').replaceAll('$instance', '.*');
}

function name(series, target) {
  const legend = target.legendFormat;
  if (legend && legend !== '__auto') return legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => series.metric[label] ?? '');
  return Object.entries(series.metric).filter(([label]) => label !== '__name__').map(([label, value]) => `${label}=${value}`).join(' ');
}

// The values of a panel, in the form in which the page needs them.
async function values(panel) {
  if (panel.type === 'timeseries') {
    const times = [];
    for (let time = start; time <= end; time += step) times.push(time);
    const lines = [];
    for (const target of panel.targets) {
      for (const series of await ask('query_range', { query: expand(target.expr), start, end, step })) {
        const at = new Map(series.values.map(([time, value]) => [Math.round(time), Number(value)]));
        const points = times.map((time) => (Number.isFinite(at.get(time)) ? at.get(time) : null));
        lines.push({ label: name(series, target), points });
      }
    }
    return { times, lines };
  }
  const rows = [];
  for (const target of panel.targets) {
    for (const series of await ask('query', { query: expand(target.expr), time: end })) {
      rows.push({ label: name(series, target), metric: series.metric, value: Number(series.value[1]) });
    }
  }
  return { rows };
}

// What runs in the page. It knows the units that the dashboards use.
function draw(panels, columnPx, rowPx, colors) {
  const format = (value, unit) => {
    if (value === null || Number.isNaN(value)) return '-';
    const scaled = (number, steps) => {
      for (const [limit, suffix] of steps) if (Math.abs(number) >= limit) return `${Number((number / limit).toPrecision(3))} ${suffix}`;
      return null;
    };
    if (unit === 'percentunit') return `${Number((value * 100).toPrecision(3))} %`;
    if (unit === 's') return value === 0 ? '0 s' : scaled(value, [[60, 'min'], [1, 's'], [1e-3, 'ms'], [1e-6, 'µs']]) ?? `${value} s`;
    if (unit === 'bytes') return scaled(value, [[2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) ?? `${value} B`;
    const text = scaled(value, [[1e6, 'M'], [1e4 / 10, 'k']]) ?? `${Number(value.toPrecision(3))}`;
    return { ops: `${text}/s`, reqps: `${text} req/s` }[unit] ?? text;
  };
  const element = (parent, className, text = '') => {
    const child = parent.appendChild(document.createElement('div'));
    child.className = className;
    child.textContent = text;
    return child;
  };
  for (const panel of panels) {
    const { x, y, w, h } = panel.gridPos;
    const box = element(document.body, `panel ${panel.type}`);
    const width = w * columnPx - 8;
    const height = h * rowPx - 8;
    Object.assign(box.style, { left: `${x * columnPx + 4}px`, top: `${y * rowPx + 44}px`, width: `${width}px`, height: `${height}px` });
    element(box, 'title', panel.title);
    const { unit, thresholds, mappings } = panel.fieldConfig?.defaults ?? {};
    if (panel.type === 'stat') {
      for (const { label, value } of panel.values.rows) {
        const steps = thresholds?.steps ?? [];
        const color = steps.filter((each) => each.value === null || value >= each.value).at(-1)?.color ?? 'green';
        const mapped = mappings?.[0]?.options?.[value]?.text;
        element(box, `value ${color}`, mapped ?? (label.startsWith('version=') ? `${value} × ${label.slice(8)}` : format(value, unit)));
      }
      if (panel.values.rows.length === 0) element(box, 'value', 'no data');
    } else if (panel.type === 'table') {
      for (const { metric } of panel.values.rows.slice(0, 6)) {
        const { alertname, alertstate, severity, instance = '' } = metric;
        element(box, 'row-of-table', [alertname, alertstate, severity, instance].join('   '));
      }
      if (panel.values.rows.length === 0) element(box, 'row-of-table', 'no alert is active');
    } else if (panel.type === 'timeseries') {
      const lines = panel.values.lines.slice(0, colors.length);
      if (lines.length === 0) {
        element(box, 'row-of-table', 'nothing in this time');
        continue;
      }
      const custom = panel.fieldConfig.defaults.custom;
      const isStacked = Boolean(custom.stacking);
      const sums = panel.values.times.map(() => 0);
      const data = lines.map(({ points }) => (isStacked ? points.map((point, index) => (sums[index] += point ?? 0)) : points));
      const order = isStacked ? data.map((_, index) => data.length - 1 - index) : data.map((_, index) => index);
      const axis = { stroke: '#9fa7b3', grid: { stroke: '#2c3235', width: 1 }, ticks: { show: false }, font: '11px sans-serif' };
      const plot = element(box, 'plot');
      const { min, max } = panel.fieldConfig.defaults;
      new uPlot({
        width: width - 12,
        height: height - 48,
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, low, high) => [min ?? low, max ?? (high > (min ?? low) ? high * 1.05 : (min ?? low) + 1)] } },
        axes: [{ ...axis, values: (_, splits) => splits.map((time) => new Date(time * 1000).toISOString().slice(11, 16)) }, { ...axis, size: 70, values: (_, splits) => splits.map((value) => format(value, unit)) }],
        series: [{}, ...order.map((index) => ({
          stroke: colors[index],
          width: 1,
          fill: `${colors[index]}${isStacked ? '60' : '18'}`,
          points: { show: false },
          spanGaps: false,
          paths: custom.lineInterpolation === 'stepAfter' ? uPlot.paths.stepped({ align: 1 }) : undefined,
        }))],
      }, [panel.values.times, ...order.map((index) => data[index])], plot);
      const legend = element(box, 'legend');
      lines.forEach(({ label }, index) => {
        element(legend, 'key', label || 'value').style.setProperty('--color', colors[index]);
      });
    }
  }
}

const STYLE = `
body { background: #111217; color: #d8d9da; font: 13px sans-serif; margin: 0; }
h1 { font-size: 17px; font-weight: 500; margin: 0; padding: 12px; }
.panel { position: absolute; background: #181b1f; border: 1px solid #24282e; border-radius: 2px; box-sizing: border-box; overflow: hidden; padding: 4px 6px; }
.panel.row { background: none; border: none; }
.panel.row .title { font-size: 15px; }
.title { font-weight: 500; white-space: nowrap; }
.value { font-size: 30px; font-weight: 500; text-align: center; margin-top: 10px; }
.green { color: #73bf69; } .orange { color: #ff780a; } .red { color: #f2495c; }
.legend { display: flex; gap: 12px; font-size: 11px; overflow: hidden; white-space: nowrap; }
.key::before { content: ''; display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; background: var(--color); }
.row-of-table { margin-top: 8px; white-space: pre; color: #9fa7b3; }
`;

const work = mkdtempSync(join(tmpdir(), 'dashboard-pictures-'));
mkdirSync(target, { recursive: true });
try {
  for (const file of readdirSync(folder).filter((each) => each.endsWith('.json'))) {
    const dashboard = JSON.parse(readFileSync(join(folder, file), 'utf8'));
    const panels = [];
    for (const panel of dashboard.panels) panels.push({ ...panel, values: panel.type === 'row' ? {} : await values(panel) });
    const rows = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
    const script = `${readFileSync(join(library, 'uPlot.iife.min.js'), 'utf8')}\n(${draw})(${JSON.stringify(panels)}, ${COLUMN_PX}, ${ROW_PX}, ${JSON.stringify(COLORS)});`;
    const page = join(work, 'page.html');
    writeFileSync(page, `<!doctype html><meta charset="utf-8"><title>${dashboard.title}</title>
<style>${readFileSync(join(library, 'uPlot.min.css'), 'utf8')}${STYLE}</style><body><h1>${dashboard.title}</h1><script>${script}</script></body>`);
    const picture = join(target, `dashboard-${file.replace('.json', '.png')}`);
    execFileSync('chromium', [
      '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', `--user-data-dir=${join(work, 'profile')}`,
      `--window-size=${24 * COLUMN_PX + 8},${rows * ROW_PX + 56}`, `--screenshot=${picture}`, `file://${page}`,
    ], { stdio: 'ignore' });
    console.log(picture);
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
