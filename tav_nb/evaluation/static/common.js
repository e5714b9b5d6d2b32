const keep = { 'data-lm-suppress-shortcuts': 'true' }

function addElement(parent, tag, attributes = {}, text) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries({
    ...attributes,
    ...(/input|select|button/.test(tag) ? keep : {}),
  })) {
    node.setAttribute(name, value)
  }
  if (text !== undefined) node.textContent = text
  parent.append(node)
  return node
}

function setTraits(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value)
  try {
    model.save_changes()
  } catch {
    // a saved page has no kernel
  }
}

async function loadImage(bytes) {
  const image = new Image()
  const url = URL.createObjectURL(new Blob([bytes], { type: 'image/webp' }))
  image.src = url
  await image.decode()
  URL.revokeObjectURL(url)
  return image
}

// Where a frame is in the image that holds all of them: x, y, width, height
function frameRect(model, index) {
  const columns = model.get('columns')
  const w = model.get('width')
  const h = model.get('height')
  return [(index % columns) * w, Math.floor(index / columns) * h, w, h]
}

function canvas(parent, width, height, label, shown = Math.max(width, 224)) {
  const node = addElement(parent, 'canvas', {
    width,
    height,
    role: 'img',
    'aria-label': label,
    style: `width: ${shown}px`,
  })
  return [node, node.getContext('2d')]
}

function createRoot(el, model, kind) {
  const root = addElement(el, 'div', {
    class: 'tav',
    role: 'group',
    'aria-label': `${kind}: ${model.get('label')}`,
    tabindex: 0,
    ...keep,
  })
  root.listen = (names, act) => {
    for (const name of names) model.on(`change:${name}`, act)
    root.ends.push(() => {
      for (const name of names) model.off(`change:${name}`, act)
    })
    act()
  }
  root.ends = []
  root.end = () => root.ends.forEach((end) => end())
  return root
}

function player(root, model) {
  const bar = addElement(root, 'div', { class: 'tav-bar' })
  const last = model.get('count') - 1
  const button = addElement(
    bar,
    'button',
    { type: 'button', class: 'tav-play', 'aria-label': 'Play' },
    '\u25b6',
  )
  const text = addElement(bar, 'output')
  const range = addElement(bar, 'input', {
    type: 'range',
    min: 0,
    max: last,
    step: 1,
    class: 'tav-frame',
    'aria-label': 'Frame',
  })
  const step = (by) => setTraits(model, { index: (model.get('index') + by + last + 1) % (last + 1) })
  let timer
  const play = (on) => {
    clearInterval(timer)
    timer = on ? setInterval(step, 1000 / model.get('fps'), 1) : undefined
    button.textContent = on ? '\u275a\u275a' : '\u25b6'
    button.setAttribute('aria-label', on ? 'Pause' : 'Play')
  }
  button.onclick = () => play(!timer)
  range.oninput = () => {
    play(false)
    setTraits(model, { index: +range.value })
  }
  root.addEventListener('keydown', (event) => {
    const plain = event.target == root || event.target == range
    if (plain && event.key == ' ') play(!timer)
    else if (event.target == root && event.key == 'ArrowRight') {
      play(false)
      step(1)
    } else if (event.target == root && event.key == 'ArrowLeft') {
      play(false)
      step(-1)
    } else return
    event.preventDefault()
    event.stopPropagation()
  })
  root.listen(['index'], () => {
    range.value = model.get('index')
    range.setAttribute('aria-valuetext', `frame ${range.value} of 0 to ${last}`)
    text.textContent = `frame ${range.value}`
  })
  root.ends.push(() => play(false))
  return bar
}

// Calls act with the place of the pointer, x and y from 0 to 1
function onDrag(node, act) {
  const go = (event) => {
    const box = node.getBoundingClientRect()
    const clip = (x) => Math.min(Math.max(x, 0), 0.9999)
    act(clip((event.clientX - box.left) / box.width), clip((event.clientY - box.top) / box.height))
  }
  node.onpointerdown = (event) => {
    node.setPointerCapture(event.pointerId)
    go(event)
  }
  node.onpointermove = (event) => {
    if (event.buttons) go(event)
  }
}

function addSelect(parent, label, names, act) {
  const box = addElement(parent, 'label', {}, label + ' ')
  const select = addElement(box, 'select', { 'aria-label': label })
  const fill = (names) =>
    select.replaceChildren(
      ...names.map((name, i) => {
        const o = document.createElement('option')
        o.value = i
        o.textContent = name
        return o
      }),
    )
  fill(names)
  select.onchange = () => act(+select.value)
  return [select, fill]
}

// n x n numbers from 0 to 1 as squares, with a frame around the marked row
function drawHeatMap(context, n, value, marked) {
  const size = context.canvas.width / n
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const v = Math.min(1, value(i, j))
      const red = Math.round(255 * Math.min(1, 1.6 * v))
      const green = Math.round(255 * v * v)
      const blue = Math.round(110 + 60 * Math.sin(3 * v))
      context.fillStyle = `rgb(${red} ${green} ${blue})`
      context.fillRect(j * size, i * size, size + 0.5, size + 0.5)
    }
  }
  context.strokeStyle = '#fff'
  context.lineWidth = 2
  if (marked >= 0) context.strokeRect(1, marked * size + 1, n * size - 2, size - 2)
}
