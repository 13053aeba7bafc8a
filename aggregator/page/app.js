// The live page: draws each snapshot of /api/v1/events, and never shows an old one as fresh.
// All texts come from the nodes: they become text nodes and attributes only, never markup.

const SVG = 'http://www.w3.org/2000/svg'
/** Without an event for this long the connection is as good as lost; the aggregator sends one every 2 s. */
const SILENCE_MS = 5000
/** More nodes than this are drawn without numbers, and more than that not at all. */
const CELLS_WITH_NUMBERS = 16
const CELLS = 64

const WORDS = {
  fine: 'fine', unknown: 'could not tell', slow: 'slow', lossy: 'lossy', cut: 'cut',
  online: 'online', silent: 'does not report', gone: 'gone', 'last-known': 'last known',
}
/** Node, condition and finding states, by the shape that stands for them. */
const SHAPES = {
  online: 'fine', silent: 'lossy', gone: 'cut', 'last-known': 'unknown',
  clear: 'fine', raised: 'lossy', warning: 'lossy', critical: 'cut',
  met: 'fine', not_needed: 'fine', waiting: 'slow', unmet: 'lossy', blocked: 'cut',
}
const FINDINGS = [
  ['blocked', 'blocked'], ['unmet', 'not met'], ['unknown', 'could not tell'],
  ['waiting', 'waiting'], ['met', 'met'], ['not_needed', 'not needed'],
]
const VERDICTS = {
  blocked: 'a person must act', unmet: 'not met', unknown: 'could not tell', waiting: 'waiting', met: 'met',
  not_needed: 'not needed',
}

const byId = (id) => document.getElementById(id)

/** An element; children are elements or texts, `null` is left out. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== ''))
  return element
}

/** The shape of a state; the word stands beside it, so it is hidden from screen readers. */
function shape(state) {
  const name = SHAPES[state] ?? state
  const svg = document.createElementNS(SVG, 'svg')
  svg.setAttribute('class', `shape ${name}`)
  svg.setAttribute('aria-hidden', 'true')
  const use = document.createElementNS(SVG, 'use')
  use.setAttribute('href', `#${name}`)
  svg.append(use)
  return svg
}

/** Makes `old` look like `fresh` and keeps what is the same: focus, scroll position, what a reader has opened. */
function patch(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || key(old) !== key(fresh)) {
    old.replaceWith(fresh)
    return
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue
    return
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === 'open' && old.nodeName === 'DETAILS')) old.removeAttribute(name)
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value)
  }
  const keyed = new Map([...old.childNodes].filter(key).map((child) => [key(child), child]))
  let at = old.firstChild
  for (const child of [...fresh.childNodes]) {
    const same = key(child) ? keyed.get(key(child)) : at && !key(at) ? at : null
    if (!same) {
      old.insertBefore(child, at)
      continue
    }
    if (same === at) at = at.nextSibling
    else old.insertBefore(same, at)
    patch(same, child)
  }
  while (at) {
    const next = at.nextSibling
    at.remove()
    at = next
  }
}

const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute('data-key') : null)

function draw(id, fresh) {
  patch(byId(id).firstElementChild, fresh)
}

// ---- numbers ----

function digits(value, places) {
  return value.toLocaleString('en', { maximumFractionDigits: places, minimumFractionDigits: places, useGrouping: true })
}

function micros(us) {
  if (us === null || us === undefined) return '–'
  if (us < 1000) return `${digits(us, us < 10 ? 1 : 0)} µs`
  return us < 1e6 ? `${digits(us / 1000, us < 1e4 ? 2 : 1)} ms` : `${digits(us / 1e6, 1)} s`
}

function percent(share) {
  if (share === null || share === undefined) return '–'
  return `${digits(share * 100, share > 0 && share < 0.1 ? 1 : 0)} %`
}

function amount({ value, unit }) {
  if (value === null) return 'could not tell'
  if (unit === 'B') {
    const step = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    const n = value > 0 ? Math.min(4, Math.floor(Math.log2(value) / 10)) : 0
    return `${digits(value / 1024 ** n, n ? 1 : 0)} ${step[n]}`
  }
  if (unit === 'ms') return micros(value * 1000)
  if (unit === 'unix') return new Date(value * 1000).toLocaleString()
  const whole = Number.isInteger(value)
  return `${digits(value, whole ? 0 : Math.abs(value) < 10 ? 2 : 1)}${unit === '1' ? '' : unit === '1/s' ? ' per s' : ` ${unit}`}`
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`
}

/** Seconds from `then` to the snapshot: both by the aggregator's clock, so a wrong clock here does no harm. */
const before = (view, then) => (Date.parse(view.ts) - Date.parse(then)) / 1000

/** Subjects of links are written `n2 -> n3` on the wire. */
const arrow = (text) => text.replaceAll(' -> ', ' → ')

// ---- sections ----

function headline(view) {
  const { state, text, detail } = view.headline
  const critical = view.alerts.some((alert) => alert.severity === 'critical') || view.links.some((link) => link.state === 'cut')
  const look = state === 'trouble' ? (critical ? 'critical' : 'warning') : state
  // The alerts below carry the evidence.
  const more = view.alerts.length - 1
  const second = state !== 'trouble' || more < 0 ? detail : more ? `and ${more} more ${more === 1 ? 'alert' : 'alerts'}` : ''
  return h('div', { class: `headline ${look}`, 'data-state': state },
    shape(look),
    h('div', {}, h('p', { class: 'text' }, arrow(text)), second ? h('p', { class: 'detail' }, second) : null))
}

function alerts(view) {
  return h('ol', {}, view.alerts.map((alert) =>
    h('li', { class: `alert ${alert.severity}`, 'data-key': alert.id, 'data-alert': alert.id, 'data-kind': alert.kind },
      shape(alert.severity),
      h('div', {},
        h('p', { class: 'text' }, arrow(alert.title),
          h('span', { class: 'when' }, `${alert.severity}, for ${span(before(view, alert.since))}`)),
        h('ul', {}, alert.evidence.map((line) => h('li', {}, arrow(line))))))))
}

function stamps(node) {
  const words = {
    kernel: 'kernel clocks on both ends', mixed: 'partly user-space clocks', user: 'user-space clocks',
    none: 'not measuring',
  }
  if (!node.stamps) return null
  const why = node.stamps === 'kernel' ? null : h('span', { class: 'why' }, node.why || 'no reason given')
  return h('p', { class: 'stamps', 'data-stamps': node.stamps }, 'Round trips: ', words[node.stamps] ?? node.stamps, why)
}

function worst(node) {
  if (!node.worst) return null
  const { status, title, subject, evidence } = node.worst
  const name = subject ? `${arrow(subject)}: ${title}` : title
  return h('p', { class: `worst ${status}` }, shape(status),
    h('span', {}, h('strong', {}, status === 'unknown' ? `Could not tell: ${name}` : name), ' ', evidence))
}

function findings(node) {
  if (!node.counts && !node.findings.length) return null
  const counts = node.counts ?? node.findings.reduce(
    (sum, { state }) => ({ ...sum, [state]: (sum[state] ?? 0) + 1 }), {})
  const order = FINDINGS.map(([state]) => state)
  const sorted = [...node.findings].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state))
  return h('details', { class: 'findings' },
    h('summary', {},
      h('span', { class: 'summary-title' }, 'Requirements'),
      FINDINGS.filter(([state]) => counts[state]).map(([state, word]) =>
        h('span', { class: `count ${SHAPES[state] ?? state}`, 'data-count': state }, shape(state), `${counts[state]} ${word}`))),
    sorted.length
      ? h('ul', {}, sorted.map((finding) =>
        h('li', { 'data-key': finding.id, 'data-finding': finding.id, 'data-state': finding.state }, shape(finding.state),
          h('span', {}, h('strong', {}, finding.title), h('span', { class: 'verdict' }, VERDICTS[finding.state]),
            h('span', { class: 'why' }, finding.detail)))))
      : h('p', { class: 'why' }, 'The node has sent its counts, but not yet its list.'))
}

function node(view, n) {
  const readings = Object.entries(n.readings ?? {})
  const heard = n.heard ? `last heard ${span(before(view, n.heard))} ago` : 'not heard since the aggregator connected'
  const seen = n.state === 'online' ? `for ${span(before(view, n.since))}` : heard
  return h('article', { class: `node ${n.state}`, 'data-key': n.name, 'data-node': n.name, 'data-state': n.state },
    h('header', {},
      h('h3', {}, n.name),
      h('p', { class: 'state' }, shape(n.state), `${WORDS[n.state]}`, h('span', { class: 'when' }, seen))),
    h('p', { class: 'about' }, [n.address, n.model, n.kernel].filter(Boolean).join(' · ')),
    worst(n),
    readings.length
      ? h('dl', {}, readings.map(([id, reading]) =>
        h('div', { 'data-key': id, 'data-reading': id, class: reading.value === null ? 'none' : null },
          h('dt', {}, reading.title), h('dd', {}, amount(reading)))))
      : null,
    stamps(n),
    findings(n))
}

function nodes(view) {
  if (!view.nodes.length) {
    return h('div', { class: 'empty' }, 'No node has reported yet. Nodes appear by themselves when their agent reaches the same broker.')
  }
  const left = view.left_out.nodes
  return h('div', { class: 'grid' }, view.nodes.map((n) => node(view, n)),
    left ? h('p', { class: 'empty' }, `${left} more nodes are online and not listed.`) : null)
}

/** Which of four tints a fine link gets: a scale that means the same on every day. */
function heat(us) {
  if (us === null || us === undefined) return 'none'
  return us < 500 ? '0' : us < 2000 ? '1' : us < 10000 ? '2' : '3'
}

function cell(link, from, to, brief) {
  if (!link) return h('td', { class: 'none' }, h('span', { class: 'unseen' }, 'not measured'))
  const { state } = link
  const said = state === 'slow' && link.delay_ms !== null ? `+${micros(link.delay_ms * 1000)}` : percent(link.loss)
  const words = `${from} to ${to}: ${WORDS[state]}, round trip ${micros(link.round_trip_us)}, loss ${percent(link.loss)}`
  return h('td', {
    class: `link ${state}`, 'data-from': from, 'data-to': to, 'data-state': state,
    'data-heat': state === 'fine' ? heat(link.round_trip_us) : null, title: words,
  },
  brief
    ? [shape(state), h('span', { class: 'unseen' }, words)]
    : [h('span', { class: 'trip' }, micros(link.round_trip_us)),
      h('span', { class: 'verdict' }, shape(state), WORDS[state], h('span', { class: 'loss' }, state === 'unknown' ? '' : said))])
}

function mesh(view) {
  const names = view.nodes.map((n) => n.name)
  if (names.length < 2) return h('div', { class: 'empty' }, 'A mesh needs two nodes.')
  if (names.length > CELLS) {
    const bad = view.links.filter((link) => !['fine', 'unknown'].includes(link.state))
    return h('div', { class: 'empty' }, `${names.length} nodes are too many for a table; `,
      bad.length ? 'links that are not fine: ' : 'no link is seen as slow, lossy or cut.',
      bad.slice(0, 100).map((link) => h('span', { class: `badge ${link.state}`, 'data-from': link.from, 'data-to': link.to, 'data-state': link.state },
        shape(link.state), `${link.from} → ${link.to} ${WORDS[link.state]}`)))
  }
  const brief = names.length > CELLS_WITH_NUMBERS
  const links = new Map(view.links.map((link) => [`${link.from} ${link.to}`, link]))
  return h('table', { class: brief ? 'mesh brief' : 'mesh' },
    h('thead', {}, h('tr', {},
      h('td', { class: 'corner' }, h('span', {}, 'to →'), h('span', {}, 'from ↓')),
      names.map((to) => h('th', { scope: 'col', 'data-key': to }, to)))),
    h('tbody', {}, names.map((from) => h('tr', { 'data-key': from },
      h('th', { scope: 'row' }, from),
      names.map((to) => from === to
        ? h('td', { class: 'self' }, h('span', { class: 'unseen' }, 'itself'))
        : cell(links.get(`${from} ${to}`), from, to, brief))))))
}

function legend() {
  const states = ['fine', 'slow', 'lossy', 'cut', 'unknown']
  const tints = [['0', 'under 0.5 ms'], ['1', 'under 2 ms'], ['2', 'under 10 ms'], ['3', 'slower']]
  return h('div', { class: 'legend' },
    states.map((state) => h('span', {}, shape(state), WORDS[state])),
    h('span', { class: 'tints' }, tints.map(([tint, word]) => h('span', {}, h('i', { 'data-heat': tint }), word))))
}

function conditions(view) {
  const all = view.nodes.flatMap((n) => n.conditions.map((condition) => ({ node: n.name, ...condition })))
  const shown = all.filter((condition) => condition.status !== 'clear')
    .sort((a, b) => a.status.localeCompare(b.status) || a.severity.localeCompare(b.severity) || a.node.localeCompare(b.node))
  const clear = all.length - shown.length
  if (!all.length) return h('div', { class: 'empty' }, 'No node has judged a condition yet.')
  if (!shown.length) return h('div', { class: 'empty' }, shape('fine'), clear === 1 ? 'The one condition is clear.' : `All ${clear} conditions are clear.`)
  return h('table', { class: 'conditions' },
    h('caption', {}, `${shown.length} of ${all.length} conditions are not clear`),
    h('thead', {}, h('tr', {}, ['Node', 'Condition', 'Status', 'Evidence'].map((title) => h('th', { scope: 'col' }, title)))),
    h('tbody', {}, shown.map((condition) => {
      const key = `${condition.node} ${condition.id} ${condition.subject ?? ''}`
      return h('tr', { 'data-key': key, 'data-condition': condition.id, 'data-status': condition.status },
        h('th', { scope: 'row' }, condition.node),
        h('td', {}, condition.title, condition.subject ? h('span', { class: 'why' }, arrow(condition.subject)) : null),
        h('td', { class: `status ${condition.status}` }, shape(condition.status === 'raised' ? condition.severity : condition.status),
          condition.status === 'unknown' ? 'could not tell' : condition.severity),
        h('td', { class: 'evidence' }, condition.evidence))
    })))
}

function footer(view) {
  const refused = Object.entries(view.refused)
  const total = refused.reduce((sum, [, count]) => sum + count, 0)
  return h('div', { id: 'footer' },
    h('p', {}, `bramble-aggregator ${view.version} · `,
      h('a', { href: '/api/v1/cluster' }, 'JSON'), ' · ', h('a', { href: '/metrics' }, 'metrics')),
    total ? h('p', { 'data-refused': total }, `${total} messages were not taken: ${refused.map(([kind, count]) => `${kind} ${count}`).join(', ')}`) : null)
}

function show(view) {
  view.nodes.sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }))
  // Stable: of equal severity the root cause stays first.
  view.alerts.sort((a, b) => a.severity.localeCompare(b.severity))
  document.title = `${{ fine: '✓', unknown: '?', trouble: '!' }[view.headline.state]} ${view.cluster} · bramble`
  byId('cluster').textContent = view.cluster
  draw('headline', headline(view))
  draw('alerts', alerts(view))
  patch(byId('nodes'), h('div', { id: 'nodes' }, nodes(view)))
  draw('mesh', mesh(view))
  draw('legend', view.nodes.length > 1 ? legend() : h('div', {}))
  draw('conditions', conditions(view))
  patch(byId('footer'), footer(view))
}

// ---- connection ----

let last = null // when the last snapshot came, by this machine's steady clock
let heard = 0 // when anything came
let source = null

function status() {
  const now = performance.now()
  const lost = last !== null && (source.readyState !== EventSource.OPEN || now - heard > SILENCE_MS)
  const state = last === null ? 'connecting' : lost ? 'lost' : 'live'
  const age = last === null ? '' : `updated ${span((now - last) / 1000)} ago`
  document.body.dataset.connection = state
  const word = { connecting: 'connecting', lost: 'reconnecting', live: 'live' }[state]
  if (byId('connection-word').textContent !== word) byId('connection-word').textContent = word
  byId('age').textContent = age
  byId('lost').hidden = state !== 'lost'
  if (state === 'lost' && !byId('lost').textContent) {
    byId('lost').textContent = 'The aggregator does not answer. What you see below is old; it may no longer be true.'
  } else if (state !== 'lost') {
    byId('lost').textContent = ''
  }
  // The browser reconnects by itself after a lost connection, but not after a refusal, nor out of a silent one.
  if (source.readyState === EventSource.CLOSED || now - heard > 3 * SILENCE_MS) connect()
}

function connect() {
  source?.close()
  heard = performance.now()
  source = new EventSource('/api/v1/events')
  source.addEventListener('beat', () => { heard = performance.now() })
  source.addEventListener('cluster', (event) => {
    heard = last = performance.now()
    show(JSON.parse(event.data))
    status()
  })
  source.addEventListener('error', status)
}

connect()
setInterval(status, 1000)
