class Model {
  constructor(state) {
    this.state = state
    this.listeners = {}
  }
  get(name) {
    return this.state[name]
  }
  set(name, value) {
    if (this.state[name] !== value) {
      this.state[name] = value
      for (const act of [...(this.listeners[`change:${name}`] ?? [])]) act()
    }
  }
  on(name, act) {
    ;(this.listeners[name] ??= []).push(act)
  }
  off(name, act) {
    this.listeners[name] = this.listeners[name].filter((other) => other != act)
  }
  save_changes() {}
}
const bytes = (value) =>
  value && value.base64 !== undefined
    ? new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer)
    : value && typeof value === 'object' && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, bytes(inner)]))
      : value
window.models = []
for (const { esm, state } of JSON.parse(document.getElementById('widgets').textContent)) {
  const module = await import(URL.createObjectURL(new Blob([esm], { type: 'text/javascript' })))
  const el = document.body.appendChild(document.createElement('section'))
  const model = new Model(bytes(state))
  window.models.push(model)
  await module.default.render({ model, el })
}
