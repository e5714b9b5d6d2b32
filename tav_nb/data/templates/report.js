const clips = JSON.parse(document.getElementById('clips').textContent)
const find = (name) => document.getElementById(name)
const step = 40
let chosen = []
let drawn = 0
clips.forEach(
  (clip) =>
    (clip.words = [clip.name, clip.file, clip.caption, clip.reason, clip.licence, clip.source]
      .join(' ')
      .toLowerCase()),
)

function element(tag, className, text, parent) {
  const made = document.createElement(tag)
  if (className) made.className = className
  if (text !== undefined) made.textContent = text
  if (parent) parent.append(made)
  return made
}

function card(clip) {
  const item = element('li', clip.group == 'kept' ? 'kept' : 'dropped')
  if (clip.image) {
    Object.assign(element('img', '', undefined, item), {
      src: 'data:image/jpeg;base64,' + clip.image,
      width: clip.width,
      height: clip.height,
      decoding: 'async',
      alt: `${clip.count} frames of the clip` + (clip.caption ? ': ' + clip.caption : ''),
    })
  } else element('p', 'none', 'no frames', item)
  const text = element('div', 'text', undefined, item)
  element('h3', '', clip.name, text)
  element('p', 'verdict', clip.group == 'kept' ? 'Kept' : 'Dropped \u2013 ' + clip.reason, text)
  if (clip.caption) element('p', 'caption', clip.caption, text)
  const figures = element('dl', '', undefined, text)
  for (const [name, value] of [['time', clip.time], ['size', clip.size], ...Object.entries(clip.figures)]) {
    if (value === '') continue
    const pair = element('div', '', undefined, figures)
    element('dt', '', name, pair)
    element('dd', '', value, pair)
  }
  element('p', 'foot', `${clip.file} \u00b7 ${clip.source} \u00b7 licence: ${clip.licence}`, text)
  return item
}

function draw() {
  find('list').append(...chosen.slice(drawn, drawn + step).map(card))
  drawn = Math.min(drawn + step, chosen.length)
  find('more').hidden = drawn == chosen.length
  find('status').textContent =
    chosen.length == clips.length ? `All ${clips.length} clips` : `${chosen.length} of ${clips.length} clips`
}

function choose() {
  const form = new FormData(find('choice'))
  const words = form.get('words').toLowerCase().split(/\s+/)
  const [sort, way] = form.get('sort').split(' ')
  chosen = clips.filter(
    (clip) =>
      (!form.get('group') || clip.group == form.get('group')) &&
      words.every((word) => clip.words.includes(word)),
  )
  if (sort) {
    const value = (clip) => clip.figures[sort] ?? NaN
    chosen.sort(
      (a, b) => isNaN(value(a)) - isNaN(value(b)) || (way == 'up' ? 1 : -1) * (value(a) - value(b)) || 0,
    )
  }
  find('list').replaceChildren()
  drawn = 0
  draw()
}

find('choice').addEventListener('input', choose)
find('choice').addEventListener('submit', (event) => event.preventDefault())
find('more').addEventListener('click', draw)
new IntersectionObserver(
  (seen) => {
    if (seen.some((one) => one.isIntersecting) && drawn < chosen.length) draw()
  },
  { rootMargin: '800px' },
).observe(find('more'))
choose()
