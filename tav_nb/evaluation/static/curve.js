function curve(parent, model, name) {
  const { words, values, unit, shift } = model.get('curves')[name]
  const last = model.get('count') - 1
  const known = values.filter((y) => y !== null)
  const low = Math.min(...known) > 0.5 ? Math.min(...known) : 0
  const high = Math.max(...known, low + 1e-6)
  const draw = (tag) => document.createElementNS('http://www.w3.org/2000/svg', tag)
  const figure = addElement(parent, 'figure')
  const caption = addElement(figure, 'figcaption', {}, words)
  const svg = figure.appendChild(draw('svg'))
  const x = (t) => 2 + (236 * t) / last
  const y = (v) => 48 - (44 * (v - low)) / (high - low)
  const set = (node, attributes) => {
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
    return node
  }
  set(svg, { viewBox: '0 0 240 52', role: 'img', 'aria-label': `${words} over the frames, ${unit}` })
  const box = set(draw('rect'), { x: 1, y: 1, width: 238, height: 50 })
  const mark = set(draw('line'), { y1: 1, y2: 51 })
  const line = set(draw('polyline'), {
    points: values
      .map((v, t) => (v === null ? '' : `${x(t + shift).toFixed(1)},${y(v).toFixed(1)}`))
      .join(' '),
  })
  svg.append(box, line, mark)
  onDrag(svg, (at) => setTraits(model, { index: Math.min(last, Math.max(0, Math.round(at * last - shift))) }))
  return (index) => {
    const v = values[index]
    const where = x(Math.min(last, index + shift))
    set(mark, { x1: where, x2: where })
    caption.textContent = `${words}: ${v === null || v === undefined ? '\u2013' : v.toPrecision(3)}`
  }
}
